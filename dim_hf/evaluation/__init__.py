"""From a model and a data set to scores that a reviewer can check."""
