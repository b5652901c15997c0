"""The study `scaling`: patches against tokens at matched training FLOPs, with seeds.

scaling_plan (what is trained) -> entropy_thresholds (entropy model, rules) -> scaling_runs (trunks, decay branches) ->
rows -> scaling_analysis, scaling_fits -> scaling_tables, scaling_figures. plan_cost estimates a plan beforehand.
"""
