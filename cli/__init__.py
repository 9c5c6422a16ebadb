"""The commands: read flags, call one function of the library, print. One file per command."""
