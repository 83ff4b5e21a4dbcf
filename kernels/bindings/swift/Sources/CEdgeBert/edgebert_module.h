/* For module.modulemap, which takes no search path. */
#include <edgebert.h>
