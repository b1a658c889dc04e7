"""What an adapter is: PEFT folders as factors and scales, their base, and the stack one trains on."""
