"""The suite `long`: RULER's tasks from 4K to 128K, and public benchmarks of long context, asked by ranking and by reply.

Standard library only, but for reading the datasets of a mirror. Imports nothing of ours.
"""
