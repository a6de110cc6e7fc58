"""From rollouts and rewards to a better policy."""
