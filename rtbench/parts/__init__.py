"""What parts are given and what they return: knobs, masks, threat models, random numbers, the protocol of native attacks."""
