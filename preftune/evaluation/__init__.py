"""AlpacaEval 2, Arena-Hard and MT-Bench as published, and preference accuracy: answers, judgments, scores."""
