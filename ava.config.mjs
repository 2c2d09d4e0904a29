export default {
  files: ['dist-test/**/*.test.js', 'scripts/**/*.test.mjs', 'examples/microvm/test/*.test.mjs'],
  // Tests start processes, map memory and load a native module: a process for each file keeps a crash in its own file.
  workerThreads: false,
  nodeArguments: ['--enable-source-maps'],
  timeout: '3m',
};
