"""What runs in processes of their own, outside the package: standard library only, no import of anything above here.

`launcher` builds the sandbox and watches over it, with the calls of `kernel` and the filter of `syscalls`; `driver` is
the text of the process that holds the untrusted program.
"""
