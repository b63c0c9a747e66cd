"""The attack engine: runs attacks, judges what they propose, meters what they cost. Attacks propose; the harness decides."""
