"""One engine a way of sharding: backward, step, save and load."""
