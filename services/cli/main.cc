#include "services/cli/commands.h"

int main(int argc, char** argv) { return kvist::services::RunCommandLine(argc, argv); }
