"""The serial link to the incubator's display. Leaf: standard library and pyserial."""
