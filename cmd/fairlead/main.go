// Command fairlead is the proxy, the ztunnel and their tools in one binary.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
		report(os.Stderr, err)
		os.Exit(1)
	}
}

// fileError is an error about a file that was given by name.
type fileError struct {
	file string
	err  error
}

func (e *fileError) Error() string { return e.file + ": " + e.err.Error() }
func (e *fileError) Unwrap() error { return e.err }

// inFile says that err is about file; a problem of the file system says so
// itself.
func inFile(file string, err error) error {
	var pe *fs.PathError
	if err == nil || errors.As(err, &pe) && pe.Path == file {
		return err
	}
	return &fileError{file, err}
}

// report prints err, one problem a line, each with its file.
func report(w io.Writer, err error) {
	prefix := "fairlead: "
	if fe, ok := errors.AsType[*fileError](err); ok {
		prefix += fe.file + ": "
	}
	if pe, ok := errors.AsType[*xdsresource.ParseError](err); ok {
		for _, p := range pe.Problems {
			_, _ = fmt.Fprintln(w, prefix+p.String())
		}
		return
	}
	_, _ = fmt.Fprintln(w, "fairlead: "+err.Error())
}

func root() *cobra.Command {
	c := &cobra.Command{
		Use: "fairlead", Short: "Layer-7 proxy for Istio ambient meshes: waypoint, gateways, ztunnel",
		SilenceUsage: true, SilenceErrors: true,
	}
	c.AddCommand(proxyCommand(), configCommand(), explainCommand(), ztunnelCommand(), demoCommand(), &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { cmd.Println("fairlead " + version) },
	})
	return c
}
