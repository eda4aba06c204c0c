"""Reading the plan files that other methods publish: MoA, PrefixKV, DuoAttention and LServe."""
