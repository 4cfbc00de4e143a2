"""The CNN half: finds the parts of a model that are pure tensor code, and runs each by the fastest engine."""
