"""The LSTM, in the order in which a call goes: modules, functional, canonical, dispatch, ops, one file of backends."""
