"""A trained network inside the tools that people label with; each module speaks its tool's own language.

cvat         an auto-annotation function, for `cvat-cli` and CVAT's agent
labelstudio  a machine-learning backend, a WSGI application

A photograph comes in as the tool has it, shapes of the network's classes go out. No tags are asked for, nothing is
learned, and nothing is written.
"""
