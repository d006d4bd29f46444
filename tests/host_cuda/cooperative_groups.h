// Blocks of a cluster are not emulated: one block works on a row, as before sm_90.
#pragma once
