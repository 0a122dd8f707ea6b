"""The appliance around the runtime: what is installed on the device, what is checked there, and the bundle of weights."""
