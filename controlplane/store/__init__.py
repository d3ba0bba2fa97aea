"""etcd behind the Store port."""
