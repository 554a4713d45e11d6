/* A library that does nothing: what preloading costs by itself. */
int spc_empty;
