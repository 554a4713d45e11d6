/* A library that does nothing, to measure the cost of preloading alone. */
int spc_empty;
