"""Other people's secure sums, run in this process by their own functions, called as they call them.

One file a package: `flower` (SecAgg+), `openfl`, `appfl`, `nvflare` (CKKS). Each imports its package when it is
imported itself, and fails there if it is not installed.
"""
