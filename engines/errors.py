"""What goes wrong with an engine, whichever one it is."""


class EngineError(RuntimeError):
    """The engine could not be made or gave no usable answer. No waveform exists then."""
