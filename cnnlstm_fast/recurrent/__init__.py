"""The LSTM. A call passes modules, functional, canonical, dispatch, ops and one file of backends, in this order."""
