"""What every command needs and nobody needs to understand the method: flags, artefacts, configurations, resuming."""
