"""How a project that learns from clusters calls faiss: reduce the features, cluster them, read the losses.

The test runs it as it stands, and with the import replaced.
"""

import faiss
import numpy as np


def preprocess(features, dimensions):
    """PCA, whitening, rows of unit length."""
    features = features.astype("float32")
    pca = faiss.PCAMatrix(features.shape[1], dimensions, -0.5)
    pca.train(features)
    assert pca.is_trained
    reduced = pca.apply_py(features)
    return reduced / np.linalg.norm(reduced, axis=1, keepdims=True)


def cluster(x, n_clusters, seed):
    """The members of every cluster, the centroids and the loss of every iteration."""
    clustering = faiss.Clustering(x.shape[1], n_clusters)
    clustering.seed = seed
    clustering.niter = 20
    clustering.max_points_per_centroid = 10_000_000
    index = faiss.IndexFlatL2(x.shape[1])
    clustering.train(x, index)
    distances, nearest = index.search(x, 1)
    stats = clustering.iteration_stats
    losses = np.array([stats.at(i).obj for i in range(stats.size())])
    centroids = faiss.vector_to_array(clustering.centroids).reshape(n_clusters, x.shape[1])
    members = [[] for _ in range(n_clusters)]
    for row, label in enumerate(nearest):
        members[int(label[0])].append(row)
    assert distances.shape == nearest.shape == (len(x), 1)
    return members, centroids, losses


def main(features, dimensions, n_clusters, seed):
    return cluster(preprocess(features, dimensions), n_clusters, seed)
