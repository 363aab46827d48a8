"""PPO, from a recipe to a run folder: `run.py` puts together, `loop.py` goes round, `update.py` takes the steps.

    prompts -> responses (sampling) -> scores (rewards), log-probs, reference, values -> updates -> prompts ...

One step of the loop is one rollout and the optimizer steps on it. The formulas are in `preftune.objectives.ppo`.
"""
