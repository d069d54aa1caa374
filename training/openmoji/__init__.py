"""How base model and judge of the embedded world were trained; frozen."""
