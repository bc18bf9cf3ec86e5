"""Network definitions. They do not depend on checkpoints."""
