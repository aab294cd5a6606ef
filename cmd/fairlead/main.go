// Command fairlead is the proxy, the ztunnel and their tools in one binary.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := root().ExecuteContext(ctx)
	stop()
	if err != nil {
		report(err)
		os.Exit(1)
	}
}

// report prints err, one problem a line.
func report(err error) {
	var pe *xdsresource.ParseError
	if errors.As(err, &pe) {
		for _, p := range pe.Problems {
			fmt.Fprintln(os.Stderr, "fairlead: "+p.String())
		}
		return
	}
	fmt.Fprintln(os.Stderr, "fairlead: "+err.Error())
}

func root() *cobra.Command {
	c := &cobra.Command{
		Use: "fairlead", Short: "Layer-7 proxy for Istio ambient meshes: waypoint, gateways, ztunnel",
		SilenceUsage: true, SilenceErrors: true,
	}
	c.AddCommand(proxyCommand(), configCommand(), ztunnelCommand(), &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { cmd.Println("fairlead " + version) },
	})
	return c
}
