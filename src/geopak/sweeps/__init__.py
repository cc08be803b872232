"""Many runs at once: their records, studies that Optuna steers, and what a sweep has found."""
