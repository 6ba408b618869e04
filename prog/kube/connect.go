package kube

import (
	"errors"
	"fmt"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Connect makes a client of the API server that a kubeconfig file names, or of a pod's own
// where there is no file, and returns the server's address. It does not wait for the server.
func Connect(kubeconfig string) (kubernetes.Interface, string, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if errors.Is(err, rest.ErrNotInCluster) || kubeconfig == "" && clientcmd.IsEmptyConfig(err) {
		err = errors.New("this is no pod: name a file with --kubeconfig")
	}
	if err != nil {
		return nil, "", fmt.Errorf("the Kubernetes API server: %w", err)
	}
	config.UserAgent = "weft"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, "", fmt.Errorf("the Kubernetes API server: %w", err)
	}
	return client, config.Host, nil
}
