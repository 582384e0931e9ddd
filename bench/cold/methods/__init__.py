"""The ways to start containers that can be measured."""
