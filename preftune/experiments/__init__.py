"""Many runs of one recipe, compared: `run_sweep`, and `run_bakeoff` over the objectives of the SimPO paper."""
