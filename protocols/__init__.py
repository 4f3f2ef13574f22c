"""Protocols: one file each, one public ``Evaluation`` a file, named after it.

A protocol is handed a model and a labeled target and yields numbers. It knows no method and no other
protocol; what several share lies in the modules that begin with an underscore.
"""
