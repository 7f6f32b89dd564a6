"""The commands, one file each. With cli.py the only code that prints or exits."""
