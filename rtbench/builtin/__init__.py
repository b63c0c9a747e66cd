"""The parts rtbench ships: one folder per kind, registered through the same hooks as any third-party plugin."""
