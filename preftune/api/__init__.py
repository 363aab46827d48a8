"""An OpenAI-compatible server: requests in over HTTP, answers of one running batch out (`preftune serve`).

door.py      what comes in: key, host, size and time of a request
schema.py    bodies of requests and answers         app.py     routes
answers.py   tokens of the batch -> OpenAI's objects            text.py  token ids -> text, stop strings
batch.py     the thread that runs the engines       served.py  names -> models, adapters
metrics.py   what Prometheus reads                  server.py  socket, signals, shutdown
"""
