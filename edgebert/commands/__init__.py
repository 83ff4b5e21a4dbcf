"""The commands of `edgebert`, one module each: HELP, add_arguments(parser), main(args).

The command line loads all of them to build its parser, so they import what is heavy inside `main`.
"""
