"""The claims of the STEP and S-STE papers, measured on tasks that run on two cores."""
