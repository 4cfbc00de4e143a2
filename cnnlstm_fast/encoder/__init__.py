"""The CNN half: finds the parts of a model around its LSTMs that are pure tensor code, and runs each by the fastest engine."""
