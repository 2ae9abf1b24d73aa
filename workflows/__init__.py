"""The durable workflows, their types, and their contract with the activities.

This package imports the standard library, pydantic and temporalio only, so that Temporal's sandbox can
reload it for every run and so that nothing in it can reach the network, the clock or a setting.
"""
