"""Physical quantities of a crystal, one file for each kind of physics."""
