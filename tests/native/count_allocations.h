// Every allocation by operator new, counted; in a file of its own, or the compiler would look into them.
#pragma once

long num_allocations();
