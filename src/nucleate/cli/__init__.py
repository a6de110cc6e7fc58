"""The command ``nucleate``: it reads options, calls the library, shows what comes back."""
