// Command fairlead is the proxy, the ztunnel and their tools in one binary.
package main

func main() {}
