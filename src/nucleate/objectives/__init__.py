"""From properties to one reward."""
