"""The rungs, a file each: their settings and who asks. A door is the only file that imports its evaluation library."""
