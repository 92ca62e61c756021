"""The stages of the workflow: one frozen dataclass each, whose fields are its inputs."""
