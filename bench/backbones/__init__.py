"""Architectures, a file a family: public ``Backbone`` subclasses here are found by the registry.

Every trunk's children are its stages; a tap is a child that ends with an activation. Weights come
from the generator alone: building neither reads nor moves torch's global random state.
"""
