"""The words of the system: states, resources as they travel on the wire, queries, errors.

Pure: no I/O here, and nothing imported from the rest of the package.
"""
